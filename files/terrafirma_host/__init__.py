"""
The program `terrafirma` on the host: releases, and what one does with them every day; secrets and
PostgreSQL, for the deploy.

Managed by Terrafirma: terrafirma/host/program.py. It needs Python's standard library alone,
and of that no more than Python 3.10 has: Ubuntu 22.04's.
"""
