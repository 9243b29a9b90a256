"""Drawings, from results that are on disk; nothing here trains."""
