#!/bin/bash
# Half an hour on one GPU, in three calls of at most 570 s that each leave small files in $OUT:
#
#   IMAGES=DIR benchmarks/half_hour.sh 1        # measures: tests, ms per step, profiles, processes at once
#   IMAGES=DIR benchmarks/half_hour.sh 2        # evidence on all of CIFAR-10, which goes on after the call
#   IMAGES=DIR benchmarks/half_hour.sh 3        # the rest of it; stopped at the end
#   IMAGES=DIR benchmarks/half_hour.sh tables   # of $OUT, anywhere: into benchmarks/gpu/ and reproduction/
#
# IMAGES   CIFAR-10 as a folder of images, train/CLASS/ and val/CLASS/; without it the archive in data/, which
#          is downloaded where it is missing, and no small grid
# OUT      where small files go (half_hour/); checkpoints stay in MODELS (models/half_hour/)
# MNIST    where its files are (data/), for one run of the small grid
# HALF_HOUR_TRY=1   all of it on a CPU in some minutes: two epochs of a few images
set -u
cd "$(dirname "$0")/.." || exit
OUT=${OUT:-half_hour} MODELS=${MODELS:-models/half_hour} IMAGES=${IMAGES:-} TRY=${HALF_HOUR_TRY:-}
GPU_TABLES=${GPU_TABLES:-benchmarks/gpu} REPORT=${REPORT:-reproduction/half_hour}
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
END=540  # seconds after which a part only saves

DATA=cifar FLAGS="--dataset cifar --precision bf16"
[ "$IMAGES" ] && DATA=cifar10 FLAGS="--dataset folder --data-dir $IMAGES --data-name cifar10 --precision bf16"
GRID="--scale small --data-dir $IMAGES --mnist-dir ${MNIST:-data} --epochs 400 --precision bf16"
ST_LAST=399 AT_LAST=69 COMPILE=--compile CPU= TRIED= SOME=
SWEPT=0,1,2,4,7,10,15,20,30,40,60,80,99,101,120,149,160,200,300,399
if [ "$TRY" ]; then
    CPU="--device cpu" DATA=digits FLAGS="--dataset digits --limit-train 20 --limit-test 10 --attack-iters 1"
    GRID="--scale small --epochs 2 --limit-train 20 --limit-test 10" SOME="--only 4 --seeds 1"
    ST_LAST=1 AT_LAST=1 COMPILE= TRIED=--try SWEPT=0,1
fi

# A run, and what is measured of its last epoch; nothing where both are done.
experiment() {  # FOLDER LAST_EPOCH KINDS FLAGS...
    folder=$DATA/vgg11bn/l_inf/eps8.0/$1 last=$2 kinds=$3
    shift 3
    grep -qsx "$folder" "$MODELS/finished" && return
    end="$MODELS/$folder/seed1 --checkpoints $last --split both --neural-collapse"
    $PYTHON train.py $FLAGS "$@" --epochs $((last + 1)) --models-dir "$MODELS" $CPU $COMPILE --resume &&
        $PYTHON eval.py $end $kinds --leaps --simplex --layerwise --ncc $CPU &&
        $PYTHON eval.py $end --epsilons 2,4,16 $CPU $COMPILE &&
        echo "$folder" >> "$MODELS/finished"
}

# The most important first: where time is short, the last of these are dropped.
evidence() {
    st=$MODELS/$DATA/vgg11bn/l_inf/eps8.0/std_train/seed1
    noise=--neural-collapse-gaussian all="$noise --neural-collapse-targeted"
    adversary="--lr-schedule cosine --checkpoint-epochs $AT_LAST --neural-collapse"
    experiment std_train $ST_LAST "$all" --checkpoint-epochs $SWEPT
    $PYTHON eval.py $st --checkpoints $SWEPT --neural-collapse $all $CPU $COMPILE
    experiment pgd_train $AT_LAST $noise --train-mode pgd_train $adversary
    experiment pgd_train_TRADES $AT_LAST $noise --train-mode pgd_train_TRADES $adversary
    experiment pgd_train_TRADES_batch $AT_LAST $noise --train-mode pgd_train_TRADES --bn batch $adversary
    experiment pgd_train_frozen $AT_LAST $noise --train-mode pgd_train --bn frozen $adversary
    [ "$IMAGES$TRY" ] && $PYTHON reproduce.py $GRID $SOME --models-dir "$MODELS/grid" --out "$MODELS/report"
    touch "$MODELS/ended"
}

# Of evidence and all that it starts, which are one group of processes.
group() { kill "$1" -- "-$(cat "$MODELS/pid")"; } 2> /dev/null
running() { [ ! -e "$MODELS/ended" ] && group -0; }

# The tables of all runs, without checkpoints.
keep() {
    mkdir -p "$OUT/runs"
    tar -C "$MODELS" --exclude='*.pth' --exclude='*.tmp' --exclude=./report -cf - . | tar -C "$OUT/runs" -xf -
}

case "${1:-}" in [123] | evidence) mkdir -p "$OUT" "$MODELS" ;; esac
case "${1:-}" in
1)
    timeout 150 $PYTHON benchmarks/warm_up.py $TRIED &  # beside the tests, which leave cores idle
    $PYTHON benchmarks/gpu.py $TRIED --out "$OUT/gpu" --stages tests
    wait
    $PYTHON benchmarks/gpu.py $TRIED --out "$OUT/gpu" --stages steps attack profile pairs switches
    ;;
2 | 3)
    if ! running; then  # part 2, and part 3 where the machine has stopped what was under way
        rm -f "$MODELS/ended"
        setsid bash benchmarks/half_hour.sh evidence >> "$MODELS/evidence.log" 2>&1 &
        echo $! > "$MODELS/pid"
        sleep 1
    fi
    while running && [ $SECONDS -lt $END ]; do sleep 1; done
    if [ "$1" = 3 ] && running; then
        group -TERM  # at which train.py and eval.py save
        while running && [ $SECONDS -lt $((END + 20)) ]; do sleep 1; done
    fi
    keep
    ;;
evidence) evidence ;;
tables)
    mkdir -p "$GPU_TABLES" && cp "$OUT"/gpu/* "$GPU_TABLES"
    runs=$(sed "s|.*|$OUT/runs/&/seed1|" "$OUT/runs/finished")
    [ "$runs" ] && $PYTHON reproduce.py --scale full --report --runs $runs --out "$REPORT"
    [ -d "$OUT/runs/grid" ] && $PYTHON reproduce.py $GRID --report --models-dir "$OUT/runs/grid" --out "$REPORT"
    ;;
*)
    echo "half_hour.sh: error: expected 1, 2, 3 or tables, got '${1:-}'" >&2
    exit 2
    ;;
esac
