"""What makes two results the same: the key of a stage, its code, hashes of files."""
