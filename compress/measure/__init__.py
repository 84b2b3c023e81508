"""Measuring nets and files."""
