"""The leg to the registries: everything that leaves this host goes through here, off the event loop."""
