"""Which layer a head should read, by closed-form probes."""
