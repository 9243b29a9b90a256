"""`python -m legw_hpc` is `legw-hpc`."""

from legw_hpc.cli import main

if __name__ == "__main__":
    main()
