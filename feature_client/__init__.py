"""Features for training and serving from one definition; usable in an application without the server.

Floor 0. What people import is in the modules; this file imports nothing, so that reading rows never pays for Arrow.
"""
