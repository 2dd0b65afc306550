-- The SQL half of the extension. Rules that hold for every function here:
-- * search_path is fixed, so nobody can put an operator or a function of their own in front of pg_catalog's;
-- * broadcasting is off inside, because these functions send on their own what other groups have to do;
-- * what could be used to gain rights is revoked from PUBLIC at the end of the file.
--
-- Adding group N to a running cluster. The caller has superuser connections to all groups; N has an empty database,
-- the library preloaded and shardman.rgid = N in its configuration:
--   1. On N:  CREATE EXTENSION shardman CASCADE;
--   2. On every existing group, in ascending order of id, in a transaction that stays open until step 6:
--        LOCK TABLE shardman.repgroups IN EXCLUSIVE MODE;
--      It stops broadcasts. ACCESS EXCLUSIVE would do so too, but pg_dump could then wait for it for ever.
--   3. Dump roles and schema of one existing group (pg_dumpall --roles-only; pg_dump --schema-only
--      --exclude-schema=shardman) and load them into N with PGOPTIONS='-c shardman.broadcast_utility=off'.
--   4. On N, in one transaction:
--        SELECT shardman.set_local_repgroup(N);
--        SELECT shardman.connect_repgroup(E, host, port, username, password);   -- once for every existing group E
--        copy the rows of shardman.sharded_tables, then of shardman.parts, unchanged from the dumped group;
--        SELECT shardman.restamp_oids();
--        SELECT shardman.restore_foreign_tables();
--      Rows of shardman.repgroups are not copied: the two functions above write them.
--   5. On every existing group, in the transaction of step 2:
--        SELECT shardman.connect_repgroup(N, host, port, username, password);
--   6. Commit everywhere; PREPARE TRANSACTION is possible, no step touches another server.

\echo Use "CREATE EXTENSION shardman CASCADE" to load this file. \quit

GRANT USAGE ON SCHEMA shardman TO PUBLIC;

-- Metadata ---------------------------------------------------------------------------------------------------------

CREATE TABLE shardman.repgroups (
    id int PRIMARY KEY CHECK (id BETWEEN 0 AND 4096),
    srvid oid
);
COMMENT ON TABLE shardman.repgroups IS 'all replication groups';
COMMENT ON COLUMN shardman.repgroups.srvid IS 'foreign server of the group; null for the group of this server';
-- Two rows that both claim to be this server would make "who am I" ambiguous.
CREATE UNIQUE INDEX repgroups_one_local ON shardman.repgroups ((srvid IS NULL)) WHERE srvid IS NULL;

CREATE TABLE shardman.sharded_tables (
    rel oid PRIMARY KEY,
    nparts int NOT NULL CHECK (nparts > 0),
    colocated_with oid REFERENCES shardman.sharded_tables (rel) ON UPDATE CASCADE,
    relname name NOT NULL,
    nspname name NOT NULL,
    partname name NOT NULL,
    partnsp name NOT NULL
);
COMMENT ON TABLE shardman.sharded_tables IS 'tables whose partitions are spread over the replication groups';
COMMENT ON COLUMN shardman.sharded_tables.relname IS 'name of the table, to find it again where its oid is another one';
COMMENT ON COLUMN shardman.sharded_tables.partname IS
    'partitions are called partname_<n> and partname_<n>_fdw; it does not follow a rename of the table';
COMMENT ON COLUMN shardman.sharded_tables.partnsp IS 'schema of the partitions';

CREATE TABLE shardman.parts (
    rel oid NOT NULL REFERENCES shardman.sharded_tables (rel) ON UPDATE CASCADE,
    pnum int NOT NULL,
    rgid int NOT NULL REFERENCES shardman.repgroups (id),
    PRIMARY KEY (rel, pnum)
);
COMMENT ON TABLE shardman.parts IS 'which replication group holds which partition';

GRANT SELECT ON shardman.repgroups, shardman.sharded_tables, shardman.parts TO PUBLIC;

SELECT pg_catalog.pg_extension_config_dump('shardman.repgroups', '');
SELECT pg_catalog.pg_extension_config_dump('shardman.sharded_tables', '');
SELECT pg_catalog.pg_extension_config_dump('shardman.parts', '');

-- In the library ---------------------------------------------------------------------------------------------------

CREATE FUNCTION shardman.require_preloaded() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'require_preloaded_wrapper';
COMMENT ON FUNCTION shardman.require_preloaded() IS 'an error unless the library is in shared_preload_libraries';

CREATE FUNCTION shardman.ddl_lock() RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'ddl_lock_wrapper';
COMMENT ON FUNCTION shardman.ddl_lock() IS
    'one schema change at a time in the whole cluster, and none while a group is being added; until the end of the transaction';

CREATE FUNCTION shardman.ex_sql(rgid int, cmd text) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'ex_sql_wrapper';
COMMENT ON FUNCTION shardman.ex_sql(int, text) IS 'run cmd on one group, as part of this transaction';

CREATE FUNCTION shardman.bcst_sql(cmd text) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'bcst_sql_wrapper';
COMMENT ON FUNCTION shardman.bcst_sql(text) IS 'run cmd on every other group, as part of this transaction';

CREATE FUNCTION shardman.bcst_all_sql(cmd text) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'bcst_all_sql_wrapper';
COMMENT ON FUNCTION shardman.bcst_all_sql(text) IS 'run cmd here, then on every other group, as part of this transaction';

CREATE FUNCTION shardman.hash_shard_table(relid regclass, nparts int, colocate_with regclass DEFAULT NULL) RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'hash_shard_table_wrapper';
COMMENT ON FUNCTION shardman.hash_shard_table(regclass, int, regclass) IS
    'spread a table that is partitioned by hash, has no partition yet and exists on all groups';

-- As the caller of the function that uses it, without a change of role and search_path.
CREATE FUNCTION shardman.send(rgid int, cmd text) RETURNS void
    LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'send_wrapper';

CREATE FUNCTION shardman.execute(cmd text, search_path text, role text, origin text) RETURNS void
    LANGUAGE c AS 'MODULE_PATHNAME', 'execute_wrapper';

-- Receiving --------------------------------------------------------------------------------------------------------

-- Each other group has a foreign table over this view. An INSERT through it travels on the connection, and in the
-- transaction, that the sender's data travels on.
CREATE VIEW shardman.exec AS
    SELECT ''::text AS sql, ''::text AS search_path, ''::text AS role, ''::text AS origin WHERE false;
COMMENT ON VIEW shardman.exec IS 'a row inserted here is run as SQL; other groups send through it';

CREATE FUNCTION shardman.exec_row() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    PERFORM shardman.execute(NEW.sql, NEW.search_path, NEW.role, NEW.origin);
    RETURN NEW;
END $$;

CREATE TRIGGER exec_row INSTEAD OF INSERT ON shardman.exec FOR EACH ROW EXECUTE FUNCTION shardman.exec_row();

-- Groups -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION shardman.local_rgid() RETURNS int
    LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
    AS $$ SELECT id FROM shardman.repgroups WHERE srvid IS NULL $$;
COMMENT ON FUNCTION shardman.local_rgid() IS 'id of the replication group of this server; null before set_local_repgroup';

CREATE FUNCTION shardman.set_local_repgroup(rgid int) RETURNS void
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    own int := shardman.local_rgid();
    configured int := current_setting('shardman.rgid')::int;
BEGIN
    PERFORM shardman.require_preloaded();
    IF own = rgid THEN
        RETURN;
    END IF;
    IF own IS NOT NULL OR EXISTS (SELECT FROM shardman.repgroups r WHERE r.id = rgid) THEN
        RAISE EXCEPTION 'this server cannot become replication group %', rgid
            USING ERRCODE = 'object_not_in_prerequisite_state',
                DETAIL = CASE WHEN own IS NOT NULL THEN format('It already is replication group %s.', own)
                    ELSE format('Replication group %s is connected here as another server.', rgid) END,
                HINT = 'The id of a group never changes. Add this server as a new group.';
    END IF;
    IF configured NOT IN (-1, rgid) THEN
        RAISE EXCEPTION 'this server cannot become replication group %', rgid
            USING ERRCODE = 'object_not_in_prerequisite_state',
                DETAIL = format('Its configuration says shardman.rgid = %s.', configured),
                HINT = 'Correct shardman.rgid first, with "shardmanctl update" or stolonctl.';
    END IF;
    INSERT INTO shardman.repgroups VALUES (rgid, NULL);
END $$;
COMMENT ON FUNCTION shardman.set_local_repgroup(int) IS 'record which replication group this server is';

CREATE FUNCTION shardman.connect_repgroup(rgid int, host text, port text, username text, password text) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    major int := current_setting('server_version_num')::int / 10000;
    server name := 'shardman_rg_' || rgid;
    server_oid oid;
    wanted jsonb;
    present jsonb;
    changes text;
BEGIN
    PERFORM shardman.require_preloaded();
    IF rgid IS NULL OR host IS NULL OR port IS NULL THEN
        RAISE EXCEPTION 'cannot connect replication group %', coalesce(rgid::text, 'null')
            USING ERRCODE = 'null_value_not_allowed', DETAIL = 'rgid, host and port must not be null.',
                HINT = 'Only username and password may be null.';
    END IF;
    IF cardinality(string_to_array(host, ',')) <> cardinality(string_to_array(port, ',')) THEN
        RAISE EXCEPTION 'cannot connect replication group %', rgid
            USING ERRCODE = 'invalid_parameter_value',
                DETAIL = format('Host list "%s" and port list "%s" differ in length.', host, port),
                HINT = 'Give one port for each host.';
    END IF;
    IF rgid = shardman.local_rgid() THEN
        RAISE EXCEPTION 'cannot connect replication group % to itself', rgid
            USING ERRCODE = 'invalid_parameter_value', DETAIL = 'It is the group of this server.',
                HINT = 'Run connect_repgroup on the other groups.';
    END IF;

    -- The application name tells every server which backend of which server a session works for: the resolver of
    -- prepared transactions, the search for distributed deadlocks and the guard against broadcast loops read it.
    -- client_connection_check_interval ends sessions, with the locks they hold, whose coordinator died.
    wanted := jsonb_build_object(
        'dbname', 'postgres', 'host', host, 'port', port,
        'application_name', format('pgfdw:%s:%%c:%%p', (SELECT system_identifier FROM pg_control_system())),
        'options', '-c client_connection_check_interval=1000',
        'connect_timeout', '10', 'keepalives', '1', 'keepalives_idle', '5', 'keepalives_interval', '5',
        'keepalives_count', '3',
        'fetch_size', '10000', 'batch_size', '1000', 'async_capable', 'true', 'parallel_commit', 'true');
    IF major >= 16 THEN
        wanted := wanted || jsonb_build_object('parallel_abort', 'true');
    END IF;

    SELECT s.oid, coalesce((SELECT jsonb_object_agg(o.option_name, o.option_value)
                            FROM pg_options_to_table(s.srvoptions) o), '{}')
        INTO server_oid, present FROM pg_foreign_server s WHERE s.srvname = server;
    IF server_oid IS NULL THEN
        EXECUTE format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (%s)', server,
            (SELECT string_agg(format('%I %L', w.key, w.value), ', ' ORDER BY w.key) FROM jsonb_each_text(wanted) w));
        SELECT s.oid INTO server_oid FROM pg_foreign_server s WHERE s.srvname = server;
    ELSE
        -- Only what differs: an ALTER SERVER makes all sessions give up their connections to the group.
        SELECT string_agg(format('%s %I %L', CASE WHEN present ? w.key THEN 'SET' ELSE 'ADD' END, w.key, w.value),
                          ', ' ORDER BY w.key)
            INTO changes FROM jsonb_each_text(wanted) w WHERE present ->> w.key IS DISTINCT FROM w.value;
        IF changes IS NOT NULL THEN
            EXECUTE format('ALTER SERVER %I OPTIONS (%s)', server, changes);
        END IF;
    END IF;

    wanted := jsonb_strip_nulls(jsonb_build_object('user', username, 'password', password));
    SELECT coalesce((SELECT jsonb_object_agg(o.option_name, o.option_value)
                     FROM pg_options_to_table(m.umoptions) o), '{}')
        INTO present FROM pg_user_mapping m
        WHERE m.umserver = server_oid AND m.umuser = (SELECT oid FROM pg_roles WHERE rolname = current_user);
    IF NOT FOUND THEN
        EXECUTE format('CREATE USER MAPPING FOR CURRENT_USER SERVER %I', server);
        present := '{}';
    END IF;
    SELECT string_agg(CASE WHEN w.value IS NULL THEN format('DROP %I', k.key)
                           ELSE format('%s %I %L', CASE WHEN present ? k.key THEN 'SET' ELSE 'ADD' END, k.key, w.value)
                      END, ', ' ORDER BY k.key)
        INTO changes
        FROM unnest(ARRAY['user', 'password']) k (key) LEFT JOIN jsonb_each_text(wanted) w ON w.key = k.key
        WHERE present ->> k.key IS DISTINCT FROM w.value;
    IF changes IS NOT NULL THEN
        EXECUTE format('ALTER USER MAPPING FOR CURRENT_USER SERVER %I OPTIONS (%s)', server, changes);
    END IF;

    IF to_regclass(format('shardman.exec_%s', rgid)) IS NULL THEN
        -- batch_size 1: statements must arrive one by one, in their order, before the next local step.
        EXECUTE format('CREATE FOREIGN TABLE shardman.%I (sql text, search_path text, role text, origin text) SERVER %I '
            'OPTIONS (schema_name ''shardman'', table_name ''exec'', batch_size ''1'')', 'exec_' || rgid, server);
    END IF;

    INSERT INTO shardman.repgroups VALUES (rgid, server_oid)
        ON CONFLICT (id) DO UPDATE SET srvid = excluded.srvid WHERE repgroups.srvid IS DISTINCT FROM excluded.srvid;
END $$;
COMMENT ON FUNCTION shardman.connect_repgroup(int, text, text, text, text) IS
    'create or alter the foreign server, user mapping and metadata by which this server reaches another group';

CREATE FUNCTION shardman.disconnect_repgroup(rgid int) RETURNS void
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    held bigint;
BEGIN
    IF rgid = shardman.local_rgid() THEN
        RAISE EXCEPTION 'cannot disconnect replication group % from itself', rgid
            USING ERRCODE = 'invalid_parameter_value', DETAIL = 'It is the group of this server.',
                HINT = 'Run disconnect_repgroup on the other groups.';
    END IF;
    SELECT count(*) INTO held FROM shardman.parts p WHERE p.rgid = disconnect_repgroup.rgid;
    IF held > 0 THEN
        RAISE EXCEPTION 'cannot disconnect replication group %', rgid
            USING ERRCODE = 'dependent_objects_still_exist', DETAIL = format('It still holds %s partitions.', held),
                HINT = 'Move its partitions to other groups first.';
    END IF;
    DELETE FROM shardman.repgroups r WHERE r.id = rgid;
    EXECUTE format('DROP SERVER IF EXISTS %I CASCADE', 'shardman_rg_' || rgid);
END $$;
COMMENT ON FUNCTION shardman.disconnect_repgroup(int) IS 'forget a group that holds no partition';

-- Partitions -------------------------------------------------------------------------------------------------------

-- The longest name, "<base>_<n>_fdw", must fit into 63 bytes; a clipped name gets a digest of the whole one, so that two
-- long names with the same beginning stay apart.
CREATE FUNCTION shardman.part_base(relname name, nparts int) RETURNS name
    LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    room int := 63 - length('_' || (nparts - 1) || '_fdw');
    base text := relname;
    digest text := '_' || left(md5(relname::text), 8);
BEGIN
    IF octet_length(base) <= room THEN
        RETURN base;
    END IF;
    WHILE octet_length(base) > room - length(digest) LOOP
        base := left(base, -1);
    END LOOP;
    RETURN base || digest;
END $$;

CREATE FUNCTION shardman.part_name(relid oid, pnum int) RETURNS name
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$ SELECT partname || '_' || pnum FROM shardman.sharded_tables WHERE rel = relid $$;
COMMENT ON FUNCTION shardman.part_name(oid, int) IS 'name of a partition on the group that holds it';

CREATE FUNCTION shardman.part_fdw_name(relid oid, pnum int) RETURNS name
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp
    AS $$ SELECT partname || '_' || pnum || '_fdw' FROM shardman.sharded_tables WHERE rel = relid $$;
COMMENT ON FUNCTION shardman.part_fdw_name(oid, int) IS 'name of a partition on the groups that do not hold it';

-- PostgreSQL takes no foreign partition under a unique index. So keys of the parent are taken away while partitions are
-- made and put back with ONLY: clients see the key (INVALID), each partition enforces its own. That the key contains the
-- distribution column, which PostgreSQL checked when the key was made, makes it unique over all groups.
CREATE FUNCTION shardman.key_defs(relid oid) RETURNS TABLE (name name, nsp name, kind text, def text)
    LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.conname, n.nspname, 'constraint', pg_get_constraintdef(c.oid)
    FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace
    WHERE c.conrelid = relid AND c.contype IN ('p', 'u')
    UNION ALL
    -- Without its "CREATE UNIQUE INDEX .. ON [ONLY] ..": that beginning differs for each partition.
    SELECT c.relname, n.nspname, 'index', substr(pg_get_indexdef(c.oid),
        length(format('CREATE UNIQUE INDEX %I ON %s%I.%I ', c.relname, CASE t.relkind WHEN 'p' THEN 'ONLY ' ELSE '' END,
            tn.nspname, t.relname)) + 1)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_class t ON t.oid = i.indrelid JOIN pg_namespace tn ON tn.oid = t.relnamespace
    WHERE i.indrelid = relid AND i.indisunique
        AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = c.oid AND k.conrelid = relid AND k.contype IN ('p', 'u'))
    ORDER BY 3, 4, 1
$$;

CREATE FUNCTION shardman.take_keys(relid oid) RETURNS jsonb
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    keys jsonb := '[]';
    k record;
BEGIN
    FOR k IN SELECT * FROM shardman.key_defs(relid) LOOP
        IF k.kind = 'constraint' THEN
            EXECUTE format('ALTER TABLE ONLY %s DROP CONSTRAINT %I', relid::regclass, k.name);
        ELSE
            EXECUTE format('DROP INDEX %I.%I', k.nsp, k.name);
        END IF;
        keys := keys || jsonb_build_object('name', k.name, 'kind', k.kind, 'def', k.def);
    END LOOP;
    RETURN keys;
END $$;

CREATE FUNCTION shardman.put_keys(relid oid, keys jsonb) RETURNS void
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    k record;
BEGIN
    FOR k IN SELECT e.value ->> 'name' AS name, e.value ->> 'kind' AS kind, e.value ->> 'def' AS def
             FROM jsonb_array_elements(keys) WITH ORDINALITY e (value, n) ORDER BY e.n LOOP
        IF k.kind = 'constraint' THEN
            EXECUTE format('ALTER TABLE ONLY %s ADD CONSTRAINT %I %s', relid::regclass, k.name, k.def);
        ELSE
            EXECUTE format('CREATE UNIQUE INDEX %I ON ONLY %s %s', k.name, relid::regclass, k.def);
        END IF;
    END LOOP;
END $$;

CREATE FUNCTION shardman.add_key(part regclass, kind text, def text) RETURNS void
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
BEGIN
    EXECUTE format(CASE kind WHEN 'constraint' THEN 'ALTER TABLE %s ADD %s' ELSE 'CREATE UNIQUE INDEX ON %s %s' END, part, def);
END $$;

-- A key that was added to the parent, or dropped from it, with partitions in place.
CREATE FUNCTION shardman.sync_keys(relid oid) RETURNS void
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    part regclass;
    k record;
BEGIN
    FOR part IN SELECT c.oid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                WHERE i.inhparent = relid AND c.relkind = 'r' ORDER BY c.relname LOOP
        FOR k IN SELECT h.* FROM shardman.key_defs(part) h
                 WHERE NOT EXISTS (SELECT FROM shardman.key_defs(relid) w WHERE (w.kind, w.def) = (h.kind, h.def)) LOOP
            IF k.kind = 'constraint' THEN
                EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', part, k.name);
            ELSE
                EXECUTE format('DROP INDEX %I.%I', k.nsp, k.name);
            END IF;
        END LOOP;
        PERFORM shardman.add_key(part, w.kind, w.def) FROM shardman.key_defs(relid) w
            WHERE NOT EXISTS (SELECT FROM shardman.key_defs(part) h WHERE (w.kind, w.def) = (h.kind, h.def));
    END LOOP;
END $$;

CREATE FUNCTION shardman.make_part(relid oid, pnum int, keys jsonb) RETURNS void
    LANGUAGE plpgsql STRICT
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    t shardman.sharded_tables;
    real_part name := shardman.part_name(relid, pnum);
    part text;
    server name;
    holder int;
    owner regrole;
    is_local bool;
BEGIN
    SELECT * INTO STRICT t FROM shardman.sharded_tables WHERE rel = relid;
    SELECT relowner INTO STRICT owner FROM pg_class WHERE oid = relid;
    SELECT p.rgid, g.srvid IS NULL, s.srvname INTO STRICT holder, is_local, server
        FROM shardman.parts p JOIN shardman.repgroups g ON g.id = p.rgid
        LEFT JOIN pg_foreign_server s ON s.oid = g.srvid WHERE p.rel = relid AND p.pnum = make_part.pnum;
    IF is_local THEN
        part := format('%I.%I', t.partnsp, real_part);
        EXECUTE format('CREATE TABLE %s PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s)',
            part, relid::regclass, t.nparts, pnum);
        PERFORM shardman.add_key(part::regclass, e.value ->> 'kind', e.value ->> 'def')
            FROM jsonb_array_elements(keys) WITH ORDINALITY e (value, n) ORDER BY e.n;
        EXECUTE format('ALTER TABLE %s OWNER TO %s', part, owner);
    ELSE
        IF server IS NULL THEN
            RAISE EXCEPTION 'replication group % is not connected', holder
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    DETAIL = format('Partition %s of %s is there.', pnum, relid::regclass),
                    HINT = format('Run shardman.connect_repgroup(%s, ...) first.', holder);
        END IF;
        part := format('%I.%I', t.partnsp, shardman.part_fdw_name(relid, pnum));
        EXECUTE format('CREATE FOREIGN TABLE %s PARTITION OF %s FOR VALUES WITH (MODULUS %s, REMAINDER %s) '
            'SERVER %I OPTIONS (table_name %L%s)', part, relid::regclass, t.nparts, pnum, server, real_part,
            CASE WHEN t.partnsp = 'public' THEN '' ELSE format(', schema_name %L', t.partnsp) END);
        EXECUTE format('ALTER FOREIGN TABLE %s OWNER TO %s', part, owner);
    END IF;
END $$;

-- What each group does on its own: record the table, make its partitions.
CREATE FUNCTION shardman.shard_here(nsp name, tab name, nparts int, colocated_nsp name, colocated_tab name, holders int[])
    RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    relid oid := to_regclass(format('%I.%I', nsp, tab));
    colocated oid := CASE WHEN colocated_tab IS NOT NULL THEN to_regclass(format('%I.%I', colocated_nsp, colocated_tab)) END;
    here text := format('replication group %s', shardman.local_rgid());
    keys jsonb;
    missing int;
BEGIN
    IF relid IS NULL THEN
        RAISE EXCEPTION 'table %.% does not exist on %', quote_ident(nsp), quote_ident(tab), here
            USING ERRCODE = 'undefined_table', DETAIL = 'A sharded table must exist on all groups.',
                HINT = 'Create it with shardman.broadcast_utility = on, or with shardman.bcst_all_sql().';
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', relid::regclass);
    IF NOT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = relid AND partstrat = 'h') THEN
        RAISE EXCEPTION 'table % is not partitioned by hash on %', relid::regclass, here
            USING ERRCODE = 'wrong_object_type', DETAIL = 'Only such a table can be sharded.',
                HINT = 'Create it with PARTITION BY HASH, or with (distributed_by = ...).';
    END IF;
    IF EXISTS (SELECT FROM pg_inherits WHERE inhparent = relid) THEN
        RAISE EXCEPTION 'table % already has partitions on %', relid::regclass, here
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'Sharding makes the partitions itself.',
                HINT = 'Detach or drop the partitions, or shard a new table.';
    END IF;
    SELECT h INTO missing FROM unnest(holders) h WHERE h NOT IN (SELECT id FROM shardman.repgroups) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'replication group % is unknown to %', missing, here
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'The groups disagree about which groups exist.',
                HINT = 'Try again in a new transaction; if it stays so, finish or undo the addition of the group.';
    END IF;

    INSERT INTO shardman.sharded_tables
        VALUES (relid, nparts, colocated, tab, nsp, shardman.part_base(tab, nparts), nsp);
    INSERT INTO shardman.parts SELECT relid, h.n - 1, h.rgid FROM unnest(holders) WITH ORDINALITY h (rgid, n);
    keys := shardman.take_keys(relid);
    PERFORM shardman.make_part(relid, i, keys) FROM generate_series(0, nparts - 1) i;
    PERFORM shardman.put_keys(relid, keys);
END $$;

-- The coordinator's part: what is asked for is checked, where partitions go is decided, all groups are told.
CREATE FUNCTION shardman.shard_everywhere(relid oid, nparts int, colocate_with oid) RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    nsp name;
    tab name;
    leader shardman.sharded_tables;
    holders int[];
    grp int;
BEGIN
    SELECT n.nspname, c.relname INTO nsp, tab FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = relid;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'relation with oid % does not exist', relid USING ERRCODE = 'undefined_table';
    END IF;
    IF shardman.local_rgid() IS NULL THEN
        RAISE EXCEPTION 'table % cannot be sharded', relid::regclass
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'This server is not part of a cluster.',
                HINT = 'Add it with "shardmanctl nodes add", or call shardman.set_local_repgroup().';
    END IF;
    IF EXISTS (SELECT FROM shardman.sharded_tables WHERE rel = relid) THEN
        RAISE EXCEPTION 'table % is already sharded', relid::regclass
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'A table is sharded once.',
                HINT = 'To change the number of partitions, create a new table and copy the rows.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_partitioned_table WHERE partrelid = relid AND partstrat = 'h') THEN
        RAISE EXCEPTION 'table % is not partitioned by hash', relid::regclass
            USING ERRCODE = 'wrong_object_type', DETAIL = 'Only such a table can be sharded.',
                HINT = 'Create it with PARTITION BY HASH, or with (distributed_by = ...).';
    END IF;
    IF EXISTS (SELECT FROM pg_class WHERE oid = relid AND relispartition) THEN
        RAISE EXCEPTION 'table % is itself a partition', relid::regclass
            USING ERRCODE = 'wrong_object_type', DETAIL = 'Only a whole table can be sharded.',
                HINT = 'Shard its parent, or a table of its own.';
    END IF;
    IF EXISTS (SELECT FROM pg_inherits WHERE inhparent = relid) THEN
        RAISE EXCEPTION 'table % already has partitions', relid::regclass
            USING ERRCODE = 'object_not_in_prerequisite_state', DETAIL = 'Sharding makes the partitions itself.',
                HINT = 'Detach or drop the partitions, or shard a new table.';
    END IF;
    IF EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND relid IN (conrelid, confrelid)) THEN
        RAISE EXCEPTION 'table % has a foreign key and cannot be sharded', relid::regclass
            USING ERRCODE = 'feature_not_supported', DETAIL = 'A foreign key cannot be checked across groups.',
                HINT = 'Drop the foreign key.';
    END IF;

    IF colocate_with IS NOT NULL THEN
        SELECT * INTO leader FROM shardman.sharded_tables WHERE rel = colocate_with;
        IF NOT FOUND OR leader.colocated_with IS NOT NULL THEN
            RAISE EXCEPTION 'table % cannot be colocated with %', relid::regclass, colocate_with::regclass
                USING ERRCODE = 'object_not_in_prerequisite_state',
                    DETAIL = CASE WHEN leader.rel IS NULL THEN 'The latter is not sharded.'
                        ELSE format('The latter is itself colocated with %s.', leader.colocated_with::regclass) END,
                    HINT = CASE WHEN leader.rel IS NULL THEN 'Shard it first.'
                        ELSE format('Colocate with %s.', leader.colocated_with::regclass) END;
        END IF;
        nparts := coalesce(nparts, leader.nparts);
        IF nparts <> leader.nparts THEN
            RAISE EXCEPTION 'table % cannot be colocated with %', relid::regclass, colocate_with::regclass
                USING ERRCODE = 'invalid_parameter_value',
                    DETAIL = format('The latter has %s partitions, not %s.', leader.nparts, nparts),
                    HINT = format('Ask for %s partitions.', leader.nparts);
        END IF;
        IF (SELECT array_agg(a.atttypid ORDER BY k.n) FROM pg_partitioned_table p
                CROSS JOIN unnest(p.partattrs::int2[]) WITH ORDINALITY k (attnum, n)
                LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.attnum WHERE p.partrelid = relid)
           IS DISTINCT FROM
           (SELECT array_agg(a.atttypid ORDER BY k.n) FROM pg_partitioned_table p
                CROSS JOIN unnest(p.partattrs::int2[]) WITH ORDINALITY k (attnum, n)
                LEFT JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.attnum WHERE p.partrelid = colocate_with)
        THEN
            RAISE EXCEPTION 'table % cannot be colocated with %', relid::regclass, colocate_with::regclass
                USING ERRCODE = 'datatype_mismatch',
                    DETAIL = 'Their distribution columns differ in number or type, so equal keys would not meet.',
                    HINT = 'Distribute both by columns of the same types.';
        END IF;
        SELECT array_agg(rgid ORDER BY pnum) INTO holders FROM shardman.parts WHERE rel = colocate_with;
    END IF;
    nparts := coalesce(nparts, current_setting('shardman.num_parts')::int);
    IF nparts < 1 THEN
        RAISE EXCEPTION 'table % cannot have % partitions', relid::regclass, nparts
            USING ERRCODE = 'invalid_parameter_value', DETAIL = 'A sharded table has at least one.',
                HINT = 'Ask for a few times as many partitions as the cluster will ever have groups.';
    END IF;
    IF holders IS NULL THEN
        -- The groups with the fewest partitions come first, then round robin: within a table no group ever gets two more
        -- than another, which is what the balance of a cluster is measured by.
        SELECT array_agg(g.ids[1 + i % cardinality(g.ids)] ORDER BY i) INTO holders
            FROM generate_series(0, nparts - 1) i,
                (SELECT array_agg(c.id ORDER BY c.held, c.id) AS ids
                 FROM (SELECT r.id, (SELECT count(*) FROM shardman.parts p WHERE p.rgid = r.id) AS held
                       FROM shardman.repgroups r) c) g;
    END IF;

    FOR grp IN SELECT id FROM shardman.repgroups ORDER BY srvid IS NOT NULL, id LOOP
        PERFORM shardman.send(grp, format('SELECT shardman.shard_here(%L, %L, %s, %L, %L, %L)',
            nsp, tab, nparts, leader.nspname, leader.relname, holders));
    END LOOP;
END $$;

-- Following the user's schema changes ------------------------------------------------------------------------------

CREATE FUNCTION shardman.forget_dropped_tables() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone oid[];
    t record;
    heir oid;
BEGIN
    SELECT array_agg(s.rel) INTO gone FROM shardman.sharded_tables s
        JOIN pg_event_trigger_dropped_objects() o ON o.classid = 'pg_class'::regclass AND o.objid = s.rel AND o.objsubid = 0;
    IF gone IS NULL THEN
        RETURN;
    END IF;
    DELETE FROM shardman.parts WHERE rel = ANY (gone);
    -- Tables colocated with a dropped one stay together: one of them, the same on every group, takes its place.
    FOR t IN SELECT s.rel FROM shardman.sharded_tables s WHERE s.rel = ANY (gone) AND s.colocated_with IS NULL LOOP
        SELECT s.rel INTO heir FROM shardman.sharded_tables s
            WHERE s.colocated_with = t.rel AND s.rel <> ALL (gone) ORDER BY s.nspname, s.relname LIMIT 1;
        UPDATE shardman.sharded_tables SET colocated_with = NULLIF(heir, rel) WHERE colocated_with = t.rel;
    END LOOP;
    DELETE FROM shardman.sharded_tables WHERE rel = ANY (gone);
END $$;

CREATE EVENT TRIGGER shardman_forget_dropped_tables ON sql_drop EXECUTE FUNCTION shardman.forget_dropped_tables();

CREATE FUNCTION shardman.follow_renames() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    f record;
BEGIN
    UPDATE shardman.sharded_tables s SET relname = c.relname, nspname = n.nspname
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = s.rel AND (s.relname, s.nspname) IS DISTINCT FROM (c.relname, n.nspname);
    UPDATE shardman.sharded_tables s SET partnsp = n.nspname
        FROM (SELECT i.inhparent, min(c.relnamespace::oid) AS nsp FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
              GROUP BY i.inhparent) p JOIN pg_namespace n ON n.oid = p.nsp
        WHERE p.inhparent = s.rel AND s.partnsp IS DISTINCT FROM n.nspname;
    -- A renamed schema has been renamed on the other groups too.
    FOR f IN SELECT c.oid::regclass AS part, s.partnsp, o.option_value AS old
             FROM shardman.sharded_tables s JOIN pg_inherits i ON i.inhparent = s.rel
             JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_foreign_table ft ON ft.ftrelid = c.oid
             LEFT JOIN LATERAL pg_options_to_table(ft.ftoptions) o ON o.option_name = 'schema_name'
             WHERE coalesce(o.option_value, 'public') <> s.partnsp LOOP
        EXECUTE format('ALTER FOREIGN TABLE %s OPTIONS (%s schema_name %L)', f.part,
            CASE WHEN f.old IS NULL THEN 'ADD' ELSE 'SET' END, f.partnsp);
    END LOOP;
END $$;

CREATE EVENT TRIGGER shardman_follow_renames ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'ALTER SCHEMA')
    EXECUTE FUNCTION shardman.follow_renames();

-- With broadcasting off a statement is somebody's repair, or a step of ours, and stays as it is.
CREATE FUNCTION shardman.follow_keys() RETURNS event_trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT current_setting('shardman.broadcast_utility')::bool THEN
        RETURN;
    END IF;
    IF tg_event = 'sql_drop' THEN
        -- What table a dropped index was on can no longer be seen.
        PERFORM shardman.sync_keys(s.rel) FROM shardman.sharded_tables s ORDER BY s.nspname, s.relname;
    ELSE
        PERFORM shardman.sync_keys(s.rel) FROM shardman.sharded_tables s WHERE s.rel IN (
            SELECT coalesce(i.indrelid, c.objid) FROM pg_event_trigger_ddl_commands() c
            LEFT JOIN pg_index i ON i.indexrelid = c.objid WHERE c.classid = 'pg_class'::regclass);
    END IF;
END $$;

CREATE EVENT TRIGGER shardman_follow_keys ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'CREATE INDEX')
    EXECUTE FUNCTION shardman.follow_keys();
CREATE EVENT TRIGGER shardman_follow_dropped_keys ON sql_drop WHEN TAG IN ('DROP INDEX')
    EXECUTE FUNCTION shardman.follow_keys();

-- A new group ------------------------------------------------------------------------------------------------------

CREATE FUNCTION shardman.restamp_oids() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    tables shardman.sharded_tables[];
    held shardman.parts[];
    lost text;
BEGIN
    UPDATE shardman.repgroups g SET srvid = s.oid FROM pg_foreign_server s
        WHERE s.srvname = 'shardman_rg_' || g.id AND g.srvid IS NOT NULL AND g.srvid <> s.oid;
    SELECT string_agg(format('%I.%I', nspname, relname), ', ' ORDER BY nspname, relname) INTO lost
        FROM shardman.sharded_tables WHERE to_regclass(format('%I.%I', nspname, relname)) IS NULL;
    IF lost IS NOT NULL THEN
        RAISE EXCEPTION 'cannot restamp the oids of sharded tables' USING ERRCODE = 'undefined_table',
            DETAIL = format('Missing here: %s.', lost), HINT = 'Copy the schema of another group first.';
    END IF;
    -- Out and in again: an update in place can meet an old oid that is another table's new one.
    SELECT array_agg(t) INTO tables FROM shardman.sharded_tables t;
    SELECT array_agg(p) INTO held FROM shardman.parts p;
    DELETE FROM shardman.parts;
    DELETE FROM shardman.sharded_tables;
    INSERT INTO shardman.sharded_tables
        SELECT to_regclass(format('%I.%I', t.nspname, t.relname)), t.nparts,
            CASE WHEN l.rel IS NOT NULL THEN to_regclass(format('%I.%I', l.nspname, l.relname)) END,
            t.relname, t.nspname, t.partname, t.partnsp
        FROM unnest(tables) t LEFT JOIN unnest(tables) l ON l.rel = t.colocated_with;
    INSERT INTO shardman.parts
        SELECT to_regclass(format('%I.%I', t.nspname, t.relname)), p.pnum, p.rgid
        FROM unnest(held) p JOIN unnest(tables) t ON t.rel = p.rel;
END $$;
COMMENT ON FUNCTION shardman.restamp_oids() IS 'recompute the oids in the metadata from names, after a dump was loaded';

CREATE FUNCTION shardman.restore_foreign_tables() RETURNS void
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    SET shardman.broadcast_utility = off AS $$
DECLARE
    t shardman.sharded_tables;
    old record;
    keys jsonb;
    filled bool;
BEGIN
    PERFORM FROM shardman.parts p JOIN shardman.repgroups g ON g.id = p.rgid WHERE g.srvid IS NULL;
    IF FOUND OR shardman.local_rgid() IS NULL THEN
        RAISE EXCEPTION 'this server is not a new replication group'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                DETAIL = CASE WHEN FOUND THEN 'It holds partitions.' ELSE 'It is no group yet.' END,
                HINT = 'Restoring foreign tables is a step of adding a group, after shardman.set_local_repgroup().';
    END IF;
    FOR t IN SELECT * FROM shardman.sharded_tables ORDER BY nspname, relname LOOP
        keys := shardman.take_keys(t.rel);
        FOR old IN SELECT c.oid::regclass AS part, c.relkind FROM shardman.parts p
                   JOIN pg_class c ON c.relname IN (shardman.part_name(p.rel, p.pnum), shardman.part_fdw_name(p.rel, p.pnum))
                   JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.partnsp
                   WHERE p.rel = t.rel AND c.relkind IN ('r', 'f') LOOP
            IF old.relkind = 'r' THEN
                EXECUTE format('SELECT EXISTS (SELECT FROM %s)', old.part) INTO filled;
                IF filled THEN
                    RAISE EXCEPTION 'table % is not empty', old.part
                        USING ERRCODE = 'object_not_in_prerequisite_state',
                            DETAIL = 'A copied schema has no rows, so this is not a new replication group.',
                            HINT = 'Start with an empty server.';
                END IF;
            END IF;
            EXECUTE format('DROP %s %s', CASE old.relkind WHEN 'r' THEN 'TABLE' ELSE 'FOREIGN TABLE' END, old.part);
        END LOOP;
        PERFORM shardman.make_part(t.rel, p.pnum, keys) FROM shardman.parts p WHERE p.rel = t.rel;
        PERFORM shardman.put_keys(t.rel, keys);
    END LOOP;
END $$;
COMMENT ON FUNCTION shardman.restore_foreign_tables() IS
    'on a new group: replace what the copied schema has as partitions by foreign partitions';

-- Rights -----------------------------------------------------------------------------------------------------------

-- What runs SQL elsewhere runs it over a superuser's connection. hash_shard_table checks its caller itself.
REVOKE ALL ON FUNCTION shardman.ex_sql(int, text), shardman.bcst_sql(text), shardman.bcst_all_sql(text),
    shardman.send(int, text), shardman.execute(text, text, text, text), shardman.exec_row(), shardman.ddl_lock(),
    shardman.set_local_repgroup(int), shardman.connect_repgroup(int, text, text, text, text),
    shardman.disconnect_repgroup(int), shardman.take_keys(oid), shardman.put_keys(oid, jsonb),
    shardman.add_key(regclass, text, text), shardman.sync_keys(oid), shardman.follow_keys(),
    shardman.make_part(oid, int, jsonb), shardman.shard_here(name, name, int, name, name, int[]),
    shardman.shard_everywhere(oid, int, oid), shardman.restamp_oids(), shardman.restore_foreign_tables(),
    shardman.forget_dropped_tables(), shardman.follow_renames() FROM PUBLIC;
