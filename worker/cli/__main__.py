"""``python -m worker.cli`` is ``embedworker``."""

from worker.cli.app import main

if __name__ == "__main__":
    main()
