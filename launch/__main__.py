"""`python -m launch` is the same program as `sft-dist`."""

from launch.cli import main

if __name__ == "__main__":
    main()
