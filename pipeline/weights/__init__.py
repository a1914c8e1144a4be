"""From a name to weights in a network: folders, the Hub, and what ships in `assets/`."""
