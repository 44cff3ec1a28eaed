"""Thousands of nodes on a real API server: what controller and agents cost it, and what the fleet costs them."""
