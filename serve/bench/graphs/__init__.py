"""`supernet bench graphs`: nodes as queries; imports the packages below, and `serve.bench`."""
