"""`supernet bench decoder`: what widths, forms and slabs gain; imports `subnetact.decoding`."""
