"""`lambent doctor`: which protections and prerequisites this machine has."""
