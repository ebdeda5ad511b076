"""An old snapshot: somebody else's transaction stays open while rows keep changing."""
