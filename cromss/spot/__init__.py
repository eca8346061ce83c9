"""Notices of clouds that take a machine back, and what a node of Ray does about them."""
