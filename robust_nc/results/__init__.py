"""What a run leaves: row types, tables and files, and the folder that holds them."""
