"""The gateway beside other proxies: `python -m bench.gateway`."""
