"""Gives the cache directory, which the kubelet made for root, to the agent's user. Arguments: path, user id, SELinux label."""

import os
import sys

path, user = sys.argv[1], int(sys.argv[2])
there = os.stat(path)
if (there.st_uid, there.st_gid) != (user, user):
    os.chown(path, user, user)
if there.st_mode & 0o777 != 0o700:
    os.chmod(path, 0o700)  # pods see mounted parts of it; nobody else on the node has to
if sys.argv[3:]:
    os.setxattr(path, "security.selinux", sys.argv[3].encode())
