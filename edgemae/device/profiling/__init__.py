"""`edgemae profile`: latency numbers that an engineer can sign."""
