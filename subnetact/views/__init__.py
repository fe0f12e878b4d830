"""The plain way to run a subnet: operators on leading slices; imports `subnetact`'s root."""
