"""``python -m embedworker.cli`` is ``embedworker``."""

from embedworker.cli.app import main

if __name__ == "__main__":
    main()
