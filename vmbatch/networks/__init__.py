"""Networks of guests: what is prepared on the host, and the element of the domain."""
