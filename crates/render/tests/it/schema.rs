//! JSON schemas, and how a CRD's becomes one.

use std::collections::BTreeMap;
use std::io::Read;

use flate2::read::GzDecoder;
use jsonschema::Validator;
use serde_json::{Value, json};

/// What validates the files of every target.
pub(crate) struct Schemas {
    objects: BTreeMap<String, Validator>,
    pub(crate) compose: Validator,
    pub(crate) production_stack: Validator,
    pub(crate) llm_d: Validator,
    pub(crate) sky_task: Validator,
    pub(crate) sky_resources: Validator,
    pub(crate) sky_service: Validator,
}

macro_rules! read {
    ($name:literal) => {
        unpacked(include_bytes!(concat!("../schemas/", $name, ".json.gz")))
    };
}

fn unpacked(packed: &[u8]) -> Value {
    let mut text = String::new();
    GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn validator(schema: &Value) -> Validator {
    jsonschema::validator_for(schema).unwrap()
}

impl Schemas {
    pub(crate) fn read() -> Self {
        let sky = read!("skypilot-0.14.1");
        let crds = [
            ("LeaderWorkerSet", read!("leaderworkerset")),
            ("RayService", read!("rayservice")),
            ("LLMInferenceService", read!("llminferenceservice")),
            ("InferencePool", read!("inferencepool")),
        ];
        let mut objects = core(&read!("kubernetes-1.37.0"));
        objects.extend(crds.into_iter().map(|(kind, crd)| (kind.to_owned(), validator(&structural(&crd)))));
        Self {
            objects,
            compose: validator(&read!("compose-spec")),
            production_stack: validator(&strict(read!("production-stack-0.1.12.values"), false)),
            llm_d: validator(&read!("llm-d-modelservice-0.4.12.values")),
            sky_task: validator(&sky["task"]),
            sky_resources: validator(&sky["resources"]),
            sky_service: validator(&sky["service"]),
        }
    }

    /// What is wrong with an object of Kubernetes, core or custom.
    pub(crate) fn object(&self, object: &Value) -> Vec<String> {
        let kind = object["kind"].as_str().unwrap();
        self.objects.get(kind).map_or_else(|| vec![format!("no schema of {kind}")], |it| problems(it, object))
    }
}

/// The validators of Kubernetes' own objects, by kind.
fn core(schemas: &Value) -> BTreeMap<String, Validator> {
    let kinds = schemas["kinds"].as_object().unwrap().iter();
    let schema = |definition: &Value| {
        let definition = format!("#/definitions/{}", definition.as_str().unwrap());
        json!({"$ref": definition, "definitions": schemas["definitions"]})
    };
    kinds.map(|(kind, definition)| (kind.clone(), validator(&schema(definition)))).collect()
}

/// What is wrong, with places.
pub(crate) fn problems(validator: &Validator, value: &Value) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// The schema of a custom resource as a JSON schema, as strict as the API server with `fieldValidation=Strict`. Rules in CEL
/// are left out.
fn structural(crd: &Value) -> Value {
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    schema["properties"]["metadata"] = json!({"type": "object"});
    strict(schema, false)
}

/// Closes every object that lists its properties; what is under `allOf` and the like adds to one, and stays open.
fn strict(schema: Value, inside_logic: bool) -> Value {
    let Value::Object(mut map) = schema else { return schema };
    if map.get("x-kubernetes-int-or-string") == Some(&true.into()) {
        return json!({"type": ["integer", "string"]});
    }
    let nullable = map.remove("nullable") == Some(true.into());
    map.remove("format");
    for (key, value) in &mut map {
        let taken = value.take();
        *value = match (key.as_str(), taken) {
            ("properties", Value::Object(properties)) => {
                properties.into_iter().map(|(name, schema)| (name, strict(schema, inside_logic))).collect()
            }
            ("items" | "additionalProperties", schema) => strict(schema, inside_logic),
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                schemas.into_iter().map(|schema| strict(schema, true)).collect()
            }
            ("not", schema) => strict(schema, true),
            (_, other) => other,
        };
    }
    let open = ["additionalProperties", "x-kubernetes-preserve-unknown-fields"];
    if !inside_logic && map.contains_key("properties") && !open.iter().any(|key| map.contains_key(*key)) {
        map.insert("additionalProperties".into(), false.into());
    }
    if nullable && let Some(kind) = map.get("type").cloned() {
        map.insert("type".into(), json!([kind, "null"]));
    }
    map.into()
}
