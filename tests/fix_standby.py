"""A standby by streaming replication, which ``pg_basebackup`` makes of a running primary."""

import shutil

from waiting import wait_until

from embedworker.database.connect import connect
from embedworker.database.embedded.account import Account
from embedworker.database.embedded.cluster import Cluster


def copy_cluster(primary: Cluster, standby: Cluster) -> None:
    """Make the standby and wait until it has what the primary has now."""
    account = Account.unprivileged()
    standby.data.mkdir(mode=0o700)
    account.own(standby.data)
    source = ["-d", primary.url("postgres"), "-D", str(standby.data)]
    how = ["--checkpoint=fast", "--wal-method=stream", "--write-recovery-conf", "--no-sync"]
    said = standby.installation.run(account, "pg_basebackup", *source, *how, folder=standby.data)
    assert said.returncode == 0, said.stderr
    shutil.copy(primary.passfile, standby.passfile)
    assert standby._pg_ctl_start() is None
    catch_up(primary, standby)


def catch_up(primary: Cluster, standby: Cluster) -> None:
    """Wait until the standby has what the primary has now."""
    with connect(primary.url()) as connection:
        # What workers write is flushed late, and a standby gets what is flushed.
        connection.execute("checkpoint")
        (written,) = connection.execute("select pg_current_wal_flush_lsn()").fetchone() or ()
    with connect(standby.url()) as connection:
        wait_until(
            lambda: (
                connection.execute(
                    "select pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]
                ).fetchone()
                == (True,)
            ),
            what="the standby",
        )
