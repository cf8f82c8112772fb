"""
The program `terrafirma` on the host: it releases applications, and looks after secrets and
PostgreSQL for the deploy.

Managed by Terrafirma: terrafirma/host/program.py. The program needs only Python's standard library,
as of Python 3.10: Ubuntu 22.04 has no newer one.
"""
