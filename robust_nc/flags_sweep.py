"""The flags of eval.py alone."""

from pathlib import Path

from robust_nc.parsing import class_number, positive_int
from robust_nc.results.rows import SPLITS
from robust_nc.settings import Means, flag

SWEEP = (
    flag("--neural-collapse", Means.FREE, action="store_true", help="clean and PGD inputs"),
    flag(
        "--neural-collapse-gaussian",
        Means.FREE,
        action="store_true",
        help="Gaussian and sign noise",
    ),
    flag(
        "--neural-collapse-targeted",
        Means.FREE,
        action="store_true",
        help="PGD towards the next class, measured with the target labels",
    ),
    flag(
        "--split",
        Means.FREE,
        choices=(*SPLITS, "both"),
        default="train",
        help="images of the three flags above; series of the test images are named test_* "
        "(default: %(default)s)",
    ),
    flag(
        "--epsilons",
        Means.FREE,
        metavar="RADII",
        help="attack at these radii, like 2,4,8,16 or 2/255,4/255, instead of the run's own; the "
        "step is then in the proportion of the run's own attack unless --pgd-alpha is given",
    ),
    flag(
        "--equal-n",
        Means.MEASURE,
        action="store_true",
        help="measure both splits on the same number of images per class, those of the smaller",
    ),
    flag(
        "--leaps",
        Means.FREE,
        action="store_true",
        help="near which clean training class mean the images of each class lie: clean ones, and "
        "those of the three flags above, or of all where none is given",
    ),
    flag(
        "--simplex",
        Means.FREE,
        nargs="*",
        type=class_number,
        metavar="CLASS",
        help="likewise where images of three classes lie in the plane of their clean training "
        "class means (without a value: 0 1 2)",
    ),
    flag(
        "--autoattack",
        Means.FREE,
        type=positive_int,
        metavar="N",
        help="accuracy of N test images under standard AutoAttack; needs the package autoattack "
        "or torchattacks",
    ),
    flag(
        "--layerwise",
        Means.FREE,
        action="store_true",
        help="collapse and nearest class means after every block, on training and test images, "
        "clean, PGD, Gaussian and targeted",
    ),
    flag(
        "--ncc",
        Means.FREE,
        action="store_true",
        help="the nearest-centre classifier of the training features on clean and PGD test "
        "images, and on the worst of several attacks against itself",
    ),
    flag(
        "--ncc-layers",
        Means.FREE,
        nargs="+",
        metavar="NAME",
        help="likewise that of the outputs of these blocks, as layers.csv names them",
    ),
    flag(
        "--layer-batch-size",
        Means.FREE,
        type=positive_int,
        metavar="N",
        help="images per batch of --layerwise, whose blocks' outputs are held at once (default: "
        "as in the rest of the sweep)",
    ),
    flag(
        "--checkpoints",
        Means.FREE,
        metavar="EPOCHS",
        help="epochs like 0,10,399, a slice like ::10, or log (default: all that the run left)",
    ),
    flag(
        "--checkpoint",
        Means.MEASURE | Means.ROW,
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure these files instead of a run's checkpoints; needs --out",
    ),
    flag(
        "--weights-key",
        Means.MEASURE | Means.ROW,
        metavar="KEY",
        help="which weights of a file of --checkpoint that holds several sets, as a line of the "
        "log names them",
    ),
    flag(
        "--out",
        Means.FREE,
        type=Path,
        metavar="DIR",
        help="folder for the results of --checkpoint, or of a run that is only to be read",
    ),
    flag(
        "--overwrite",
        Means.FREE,
        action="store_true",
        help="drop first what earlier sweeps recorded: layers, centres and AutoAttack too",
    ),
)
