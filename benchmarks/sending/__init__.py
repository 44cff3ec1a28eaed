"""What sending to peers costs, and how fast it is: one real server process, real subscribers, one veth pair."""
