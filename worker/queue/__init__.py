"""The queue protocol, one verb a module: move and claim, read, complete, fail, lease, sweep."""
