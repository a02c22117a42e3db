"""System two: the cipher, the networks and the client's training of PPIDSG."""
