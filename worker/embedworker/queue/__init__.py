"""The queue protocol, one verb a module: move, claim, complete, fail, sweep, compact and so on."""
