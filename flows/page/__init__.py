"""The explorer: a local web page over a bank and a generator. The work is done by flows.explore and the bank."""
