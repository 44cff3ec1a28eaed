"""What thousands of nodes would take: the exchange as flows through links, with rates from measured runs."""
