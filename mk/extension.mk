# The extension, built for one PostgreSQL: make extension [PG_CONFIG=/path/to/pg_config]; make install-extension [SUDO=sudo]

PG_CONFIG ?= $(shell ls -d /usr/lib/postgresql/*/bin/pg_config 2>/dev/null | sort -V | tail -1)
SUDO ?=
EXTENSION_TARGET ?= $(CURDIR)/target/extension

PG_MAJOR = $(shell $(PG_CONFIG) --version 2>/dev/null | sed -n 's/^PostgreSQL \([0-9]*\).*/\1/p')

.PHONY: extension install-extension check-pg-config

check-pg-config:
	@test -n "$(PG_MAJOR)" || { echo "no pg_config found; install postgresql and postgresql-server-dev, or give PG_CONFIG=/path/to/pg_config" >&2; exit 1; }
	@test "$(PG_MAJOR)" -ge 15 || { echo "PostgreSQL $(PG_MAJOR) is too old ($(PG_CONFIG)); the extension needs 15 or later" >&2; exit 1; }

# Cargo keeps the majors apart by feature; only the last one built stands under release/.
extension: check-pg-config
	CARGO_TARGET_DIR=$(EXTENSION_TARGET) PGRX_PG_CONFIG_PATH=$(PG_CONFIG) \
		cargo build --release -p shardman-extension --features pg$(PG_MAJOR)

# A running server has the library mapped: writing into the file would crash its sessions, a new file in its place does not.
# install_one FROM, TO, MODE
define install_one
	@if $(SUDO) cmp -s $(1) $(2); then echo "unchanged: $(2)"; else \
		$(SUDO) install -D -m $(3) $(1) $(2).new && $(SUDO) mv -f $(2).new $(2) && echo "installed: $(2)"; fi
endef

install-extension: extension
	$(call install_one,$(EXTENSION_TARGET)/release/libshardman.so,$(shell $(PG_CONFIG) --pkglibdir)/shardman.so,755)
	$(call install_one,extension/shardman.control,$(shell $(PG_CONFIG) --sharedir)/extension/shardman.control,644)
	$(call install_one,extension/sql/shardman--0.1.0.sql,$(shell $(PG_CONFIG) --sharedir)/extension/shardman--0.1.0.sql,644)
