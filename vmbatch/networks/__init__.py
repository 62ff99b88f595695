"""Networks of guests: what is prepared on the host, and the element of the domain."""

# What templates and users name -> the module. isolated is nat without a way out.
MODULES = {"nat": "nat", "isolated": "nat", "user": "user"}
