//! The extension is the same for every installing role, whatever settings and objects the database has.

use std::path::Path;

use tidings_tests::{Cluster, Database, Session, shared};

use crate::rights::open_to;
use crate::skipped;
use crate::upgrade::description;

/// The releases that an update starts from; `None` is a new installation.
const BEFORE: [Option<&str>; 3] = [None, Some("0.1.0"), Some("0.1.1")];

/// Installs the extension in a session, by an update if there is a release to start from.
fn install(session: &mut Session, release: Option<&str>) {
    match release {
        None => session.run("CREATE EXTENSION tidings"),
        Some(release) => {
            session.run(&format!("CREATE EXTENSION tidings VERSION '{release}'"));
            session.run("ALTER EXTENSION tidings UPDATE");
        }
    }
}

#[track_caller]
fn same(db: &Database<'_>) {
    let fresh = shared().database();
    let (this, new) = (description(&mut db.session()), description(&mut fresh.session()));
    let differ: Vec<_> = this.symmetric_difference(&new).collect();
    assert!(differ.is_empty(), "not in both: {differ:#?}");
}

#[test]
fn a_schema_that_another_role_has_created_or_filled_is_refused_and_nothing_in_it_is_called() {
    let trap = |schema: &str| {
        format!(
            "CREATE FUNCTION {schema}.format(text, regclass) RETURNS text LANGUAGE plpgsql AS
             $$BEGIN EXECUTE 'ALTER ROLE ' || session_user || ' SET search_path = trapped'; RETURN 'SELECT 1'; END$$"
        )
    };
    for release in ["", "VERSION '0.1.0'", "VERSION '0.1.1'"] {
        let db = shared().empty_database();
        let evil = db.role("evil");
        let mut dba = db.session();
        dba.run(&format!("ALTER DATABASE {} OWNER TO {evil}", db.name()));
        let mut owner = db.session_as(&evil);
        owner.run(&format!("CREATE SCHEMA tidings; {}", trap("tidings")));
        let create = format!("CREATE EXTENSION tidings {release}");
        let error = dba.refused(&create);
        assert_eq!(error.code().code(), "55000", "{error:?}");
        assert!(error.message().contains(&evil) && error.hint().is_some(), "{error:?}");
        // An empty schema is refused too, because its owner could fill it later.
        owner.run("DROP FUNCTION tidings.format");
        assert!(dba.refused(&create).message().contains(&evil));
        // The right owner, but with objects of other roles.
        owner.run(&trap("tidings"));
        dba.run("ALTER SCHEMA tidings OWNER TO CURRENT_USER");
        let error = dba.refused(&create);
        assert!(error.message().contains("not empty"), "{error:?}");
        assert_eq!(error.detail(), Some("It contains function tidings.format(text,regclass)"));
        dba.run("DROP FUNCTION tidings.format");
        dba.run(&create);
        assert_eq!(dba.one::<i64>("SELECT count(*) FROM pg_db_role_setting WHERE setconfig::text ~ 'trapped'"), 0);
    }
}

#[test]
fn an_update_is_refused_while_the_schema_belongs_to_somebody_else() {
    let db = shared().empty_database();
    let evil = db.role("evil");
    let mut dba = db.session();
    dba.run(&format!("CREATE EXTENSION tidings VERSION '0.1.1'; ALTER SCHEMA tidings OWNER TO {evil}"));
    let error = dba.refused("ALTER EXTENSION tidings UPDATE");
    assert!(error.message().contains(&evil) && error.hint().is_some(), "{error:?}");
    dba.run("ALTER SCHEMA tidings OWNER TO CURRENT_USER; ALTER EXTENSION tidings UPDATE");
    same(&db);
}

#[test]
fn settings_of_the_session_that_installs_change_nothing() {
    for release in BEFORE {
        let db = shared().empty_database();
        let mut session = db.session();
        session.run(
            "CREATE SCHEMA other; CREATE ACCESS METHOD other TYPE TABLE HANDLER heap_tableam_handler;
             SET search_path = other, pg_catalog; SET standard_conforming_strings = off; SET escape_string_warning = off;
             SET backslash_quote = off; SET quote_all_identifiers = on; SET transform_null_equals = on; SET array_nulls = off;
             SET DateStyle = 'German'; SET IntervalStyle = 'sql_standard'; SET bytea_output = 'escape'; SET xmloption = 'document';
             SET extra_float_digits = -10; SET check_function_bodies = on; SET row_security = off; SET TimeZone = 'Asia/Kolkata';
             SET default_table_access_method = other; SET default_toast_compression = 'pglz'; SET enable_seqscan = off",
        );
        install(&mut session, release);
        db.wait_relay();
        same(&db);
        let mut session = db.session();
        if release.is_none() {
            let others = "SELECT count(*) FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'other'";
            assert_eq!(session.one::<i64>(others), 0);
        }
        session.run(
            "CREATE TABLE items (id int);
             SELECT tidings.watch('items', topic => 'a{id}', operations => '{insert}', condition => '(NEW.id > 0)');
             INSERT INTO items VALUES (1)",
        );
        for view in ["events", "open_topics", "rules", "status", "watches"] {
            session.run(&format!("SELECT * FROM tidings.{view}"));
        }
        let watch = "SELECT concat_ws(' ', name, topic, operations, condition) FROM tidings.watches";
        assert_eq!(session.one::<String>(watch), "default a{id} {INSERT} (new.id > 0)");
    }
}

#[test]
fn a_database_of_another_encoding_gets_an_error_that_names_the_right_one() {
    for encoding in ["EUC_JP", "LATIN1", "SQL_ASCII"] {
        let db = shared().database_of(&format!("ENCODING '{encoding}' LOCALE 'C'"));
        let error = db.session().refused("CREATE EXTENSION tidings");
        assert_eq!(error.code().code(), "0A000", "{error:?}");
        assert!(error.message().contains("UTF8") && error.message().contains(encoding), "{error:?}");
    }
}

#[test]
fn names_and_operations_mean_the_same_in_every_language() {
    let options = "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C.UTF-8'";
    let mut session = shared().session("postgres", "postgres");
    if session.client().simple_query("CREATE COLLATION pg_temp.turkish (provider = icu, locale = 'tr')").is_err() {
        return skipped("Turkish, for which this Postgres has no ICU");
    }
    let db = shared().database_of(options);
    let mut session = db.session();
    session.run("CREATE EXTENSION tidings");
    assert_ne!(session.one::<String>("SELECT upper('insert')"), "INSERT", "a language with an I of its own");
    session.run(
        "CREATE TABLE items (id int);
         SELECT tidings.watch('items', topic => 'a', operations => '{insert,Truncate,DELETE}');
         INSERT INTO items VALUES (1)",
    );
    assert_eq!(session.one::<String>("SELECT operations::text FROM tidings.watches"), "{INSERT,DELETE,TRUNCATE}");
}

#[test]
fn what_default_privileges_grant_is_revoked() {
    for release in BEFORE {
        // Default privileges that the superuser has set in a database.
        let db = shared().empty_database();
        let (lucky, proxy) = (db.role("lucky"), db.role("p"));
        let mut dba = db.session();
        for kind in ["SCHEMAS", "TABLES", "SEQUENCES", "FUNCTIONS", "TYPES"] {
            dba.run(&format!("ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO {lucky} WITH GRANT OPTION"));
            dba.run(&format!("ALTER DEFAULT PRIVILEGES GRANT ALL ON {kind} TO PUBLIC"));
        }
        install(&mut dba, release);
        assert_eq!(open_to(&mut db.session_as(&lucky)), [""; 0], "after {release:?}");
        dba.run(&format!("SELECT tidings.grant_proxy('{proxy}')"));
        db.session_as(&proxy).run("SELECT tidings.position()");
        assert_eq!(open_to(&mut db.session_as(&lucky)), [""; 0]);
    }
}

#[test]
fn an_update_grants_new_objects_to_proxies_and_managers_and_a_dump_keeps_the_grants() {
    let cluster = Cluster::start(&[]);
    let db = cluster.empty_database();
    let mut dba = db.session();
    dba.run("CREATE EXTENSION tidings VERSION '0.1.1'");
    let (proxy, maker, ruler, app) = (db.proxy_role(), db.role("maker"), db.role("ruler"), db.role("app"));
    dba.run(&format!(
        "GRANT USAGE ON SCHEMA tidings TO {maker}, {ruler}, {app}; GRANT EXECUTE ON FUNCTION tidings.allow, tidings.bind_holes TO {ruler}; GRANT SELECT ON tidings.watches TO {app};
         GRANT EXECUTE ON FUNCTION tidings.watch, tidings.unwatch, tidings.watch_statements, tidings.check_watch, tidings.capture TO {maker}"
    ));
    dba.run("ALTER EXTENSION tidings UPDATE");
    let fresh = cluster.database();
    let (new_proxy, new_maker, new_ruler) = (fresh.proxy_role(), fresh.role("maker"), fresh.role("ruler"));
    fresh.session().run(&format!("SELECT tidings.grant_watch('{new_maker}'), tidings.grant_rules('{new_ruler}')"));
    let rights = |db: &Database<'_>, role: &str| open_to(&mut db.session_as(role));
    assert_eq!(rights(&db, &proxy), rights(&fresh, &new_proxy));
    assert_eq!(rights(&db, &maker), rights(&fresh, &new_maker));
    assert_eq!(rights(&db, &ruler), rights(&fresh, &new_ruler));
    assert_eq!(rights(&db, &app), ["tidings", "tidings.watches"]);
    // And a dump contains all of that: it belongs to the DBA, not to the extension.
    let output = cluster.tool("pg_dump").arg(db.name()).output().expect("run pg_dump");
    let dump = String::from_utf8_lossy(&output.stdout).into_owned();
    let granted = |role: &str| dump.lines().filter(|line| line.ends_with(&format!("TO {role};"))).count();
    assert_eq!(granted(&proxy), rights(&db, &proxy).len(), "{dump}");
    assert_eq!(granted(&maker), rights(&db, &maker).len(), "{dump}");
    assert_eq!(granted(&app), 2, "{dump}");
    // And the roles that had the rights can be dropped.
    dba.run(&format!("DROP OWNED BY {proxy}, {maker}, {app}; DROP ROLE {proxy}, {maker}, {app}"));
}

/// All scripts that an installation of this version runs, reduced to plain strings.
#[test]
fn scripts_are_ascii_and_have_no_backslash_in_a_plain_string() {
    let sql = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sql");
    let extension = std::fs::read_dir(sql.join("extension")).expect("the scripts").flatten().map(|entry| entry.path());
    let version = std::fs::read_to_string(sql.join("tidings.control")).expect("the control file");
    let version =
        version.split("default_version = '").nth(1).and_then(|rest| rest.split('\'').next()).expect("a version");
    let upgrades = std::fs::read_dir(sql.join("upgrade")).expect("the scripts").flatten().map(|entry| entry.path());
    let upgrades = upgrades.filter(|path| path.to_string_lossy().ends_with(&format!("--{version}.sql")));
    let mut count = 0;
    for path in extension.chain(upgrades) {
        count += 1;
        let text = std::fs::read_to_string(&path).expect("a script");
        for (n, line) in text.lines().enumerate() {
            assert!(line.is_ascii(), "{}:{}: {line}", path.display(), n + 1);
            // The strings of a line are every other piece between its quotes; an escape string has an E in front.
            let mut pieces = line.split('\'');
            let mut before = pieces.next().unwrap_or_default();
            for (inside, piece) in pieces.enumerate() {
                let plain = inside % 2 == 0 && !before.ends_with('E');
                assert!(!(plain && piece.contains('\\')), "{}:{}: {line}", path.display(), n + 1);
                before = piece;
            }
        }
    }
    assert!(count > 7, "{count} scripts");
}
