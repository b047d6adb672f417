"""One folder = one host: translates its callbacks to records and back. The core never imports from here."""
