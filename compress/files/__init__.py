"""Every file is written by `durable` alone, and what comes from outside is read here, with nothing believed."""
