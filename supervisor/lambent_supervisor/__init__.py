"""One machine's cluster: `lambent up` starts and keeps it, `lambent down` stops it."""
