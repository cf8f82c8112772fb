"""
The program `terrafirma` on the host: releases, and what one does with them every day.

Managed by Terrafirma: tasks/app.py. It needs Python's standard library and nothing else.
"""
