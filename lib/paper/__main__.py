import sys

from .write import main

if __name__ == "__main__":
    sys.exit(main())
