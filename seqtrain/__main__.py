"""`python -m seqtrain` is `seqtrain`."""

from seqtrain.cli.main import main

if __name__ == "__main__":
    main()
