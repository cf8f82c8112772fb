"""Logins over SSH."""
