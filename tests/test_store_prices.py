"""What a store costs, as far as its address tells whose it is."""

import pytest

from launcher.store_prices import store_price


@pytest.mark.parametrize(("address", "place", "kept", "read"), [
    ("s3://bucket/x", "Amazon S3, us-east-1", "2.30", "9.00"),
    ("s3://bucket/x?endpoint=https://s3.eu-west-3.amazonaws.com", "Amazon S3, us-east-1", "2.30", "9.00"),
    ("s3://b?endpoint=https://abc.r2.cloudflarestorage.com", "Cloudflare R2", "1.50", "0.00"),
    ("gs://bucket/x", "Google Cloud Storage, us-central1", "2.00", "12.00"),
    ("az://account/container/x", "Azure Blob Storage, hot, eastus", "1.80", "8.70"),
    ("file:///x", "a disk of yours", "0.00", "0.00")])
def test_a_hundred_gigabytes_cost_what_the_price_lists_say(address, place, kept, read):
    price = store_price(address)
    assert price is not None and price.place == place
    assert f"{price.kept_usd_per_month(10**11):.2f} {price.read_usd(10**11):.2f}" == f"{kept} {read}"


@pytest.mark.parametrize("address", ["s3://b?endpoint=http://127.0.0.1:9000", "s3://b?endpoint=https://x.example",
                                     "s3://b?endpoint=https://evilamazonaws.com"])
def test_what_another_server_asks_is_not_known(address):
    assert store_price(address) is None
