"""A cold fleet on one machine: N agents behind shaped links, against direct pulls and a BitTorrent client."""
