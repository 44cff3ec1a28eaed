"""What operators ask of the cluster and order there: the rules behind `warm`, `status`, `nodes` and `explain`."""
