"""Gives the cache directory, which the kubelet made for root, to the agent's user. Arguments: path, user, label."""

import os
import sys

path, user = sys.argv[1], int(sys.argv[2])
there = os.stat(path)
if (there.st_uid, there.st_gid, there.st_mode & 0o777) != (user, user, 0o700):
    os.chown(path, 0, 0)  # the mode is its owner's to change, so this needs no other capability
    os.chmod(path, 0o700)  # pods see mounted parts of it; nobody else on the node has to
    os.chown(path, user, user)
if sys.argv[3:]:
    os.setxattr(path, "security.selinux", sys.argv[3].encode())
