"""Workers that Ray places on the machines of a cluster and restarts when they die.

Ray knows nothing of rows. The leases of the database say who works on which, as for any worker.
"""
