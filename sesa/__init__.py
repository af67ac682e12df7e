"""SESA, replicated: sequential sampling for exploration in LLMs (Kang & Zhang, arXiv 2510.15502).

Read `sampling` first: it is the method. Importing this package imports nothing else.
"""
