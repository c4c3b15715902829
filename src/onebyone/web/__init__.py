"""The viewer's web server: a page and the data that it asks for, on this machine only."""
