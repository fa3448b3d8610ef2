//! The API's description in OpenAPI 3.1, made from the types that requests are read into and answers are made of.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::body::{BalancerStatus, FlowExplanation};
use crate::config::services::raw::{Backend, Services, Vip};
use crate::http::ErrorBody;

/// An operation of the API.
struct Operation {
    method: &'static str,
    path: &'static str,
    words: &'static str,
    /// Parameters behind `?`: name, whether required, meaning.
    query: &'static [(&'static str, bool, &'static str)],
    /// It is a change: it takes `If-Match` and `dry_run`.
    change: bool,
    body: Option<Type>,
    /// Status and body when it goes well.
    answers: &'static [(u16, Option<Type>)],
    /// Statuses of refusals beside those that every request may get.
    refusals: &'static [u16],
}

#[derive(Clone, Copy)]
enum Type {
    Services,
    Vip,
    Backend,
    Backends,
    Status,
    Explanation,
}

use Type as T;

const READ: Operation = Operation {
    method: "get",
    path: "",
    words: "",
    query: &[],
    change: false,
    body: None,
    answers: &[],
    refusals: &[],
};
const CHANGE: Operation = Operation { change: true, ..READ };

const VIPS: &str = "/v1/vips";
const VIP: &str = "/v1/vips/{vip}";
const BACKENDS: &str = "/v1/vips/{vip}/backends";
const BACKEND: &str = "/v1/vips/{vip}/backends/{backend}";

const OPERATIONS: &[Operation] = &[
    Operation {
        path: VIPS,
        words: "Every VIP, as it is desired.",
        answers: &[(200, Some(T::Services))],
        ..READ
    },
    Operation {
        method: "post",
        path: VIPS,
        words: "Makes a VIP that must not be there.",
        body: Some(T::Vip),
        answers: &[(201, Some(T::Vip))],
        refusals: &[400, 409, 413, 415],
        ..CHANGE
    },
    Operation {
        method: "put",
        path: VIPS,
        words: "Makes these VIPs all there are, in one change. Those that stay as they are keep their generation.",
        body: Some(T::Services),
        answers: &[(200, Some(T::Services))],
        refusals: &[400, 409, 413, 415],
        ..CHANGE
    },
    Operation {
        method: "delete",
        path: VIPS,
        words: "Removes every VIP.",
        answers: &[(204, None)],
        refusals: &[400, 409],
        ..CHANGE
    },
    Operation {
        path: VIP,
        words: "A VIP, as it is desired.",
        answers: &[(200, Some(T::Vip))],
        refusals: &[404],
        ..READ
    },
    Operation {
        method: "put",
        path: VIP,
        words: "Makes a VIP as it is written, whether it is there or not. What is left out gets its default.",
        body: Some(T::Vip),
        answers: &[(200, Some(T::Vip)), (201, Some(T::Vip))],
        refusals: &[400, 409, 413, 415],
        ..CHANGE
    },
    Operation {
        method: "delete",
        path: VIP,
        words: "Removes a VIP.",
        answers: &[(204, None)],
        refusals: &[400, 404, 409],
        ..CHANGE
    },
    Operation {
        path: BACKENDS,
        words: "The backends of a VIP, as they are desired.",
        answers: &[(200, Some(T::Backends))],
        refusals: &[404],
        ..READ
    },
    Operation {
        method: "post",
        path: BACKENDS,
        words: "Adds a backend that must not be there.",
        body: Some(T::Backend),
        answers: &[(201, Some(T::Backend))],
        refusals: &[400, 404, 409, 413, 415],
        ..CHANGE
    },
    Operation {
        path: BACKEND,
        words: "A backend, as it is desired. ETag is the generation of its VIP.",
        answers: &[(200, Some(T::Backend))],
        refusals: &[404],
        ..READ
    },
    Operation {
        method: "put",
        path: BACKEND,
        words: "Makes a backend as it is written, whether it is there or not. Weight 0 drains it: no new flows come.",
        body: Some(T::Backend),
        answers: &[(200, Some(T::Backend)), (201, Some(T::Backend))],
        refusals: &[400, 404, 409, 413, 415],
        ..CHANGE
    },
    Operation {
        method: "delete",
        path: BACKEND,
        words: "Removes a backend.",
        answers: &[(204, None)],
        refusals: &[400, 404, 409],
        ..CHANGE
    },
    Operation {
        path: "/v1/status",
        words: "How every VIP and backend stands, and why.",
        answers: &[(200, Some(T::Status))],
        ..READ
    },
    Operation {
        path: "/v1/explain",
        words: "What the data path would do with a packet now, and why; read from the kernel's own maps.",
        query: &[
            ("source", true, "ADDRESS:PORT, IPv6 in brackets; without `:PORT` where ports do not count"),
            ("destination", true, "ADDRESS:PORT, IPv6 in brackets; without `:PORT` where ports do not count"),
            ("protocol", false, "`tcp`, `udp` or `sctp`; `tcp` if left out"),
            ("segment", false, "as in a VIP; `none` if left out"),
            ("first", false, "`true` for the packet that begins a connection; of packet `transport` only"),
            (
                "packet",
                false,
                "`transport` (of the flow, if left out), `fragment`, `icmp-error` (one to the VIP about the flow) or \
                 `echo-request`",
            ),
        ],
        answers: &[(200, Some(T::Explanation))],
        refusals: &[400],
        ..READ
    },
];

/// The description.
#[must_use]
pub fn document() -> Value {
    let mut schemas = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let item = paths.entry(operation.path).or_insert_with(|| path_item(operation.path));
        item[operation.method] = operation_object(operation, &mut schemas);
    }
    schemas.subschema_for::<ErrorBody>();
    let mut schemas = Value::Object(schemas.take_definitions(true));
    require_what_is_required(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "weir balancer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What a site balancer is to do, how it stands, and why.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:9341"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {"Refusal": refusal()},
        },
    })
}

/// Methods and paths, for who tests them.
#[must_use]
pub fn operations() -> Vec<(&'static str, &'static str)> {
    OPERATIONS.iter().map(|operation| (operation.method, operation.path)).collect()
}

fn path_item(path: &str) -> Value {
    let parameters: Vec<Value> = path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| {
            let schema = json!({"type": "string"});
            json!({"name": name, "in": "path", "required": true, "schema": schema, "description": "Its name."})
        })
        .collect();
    if parameters.is_empty() { json!({}) } else { json!({"parameters": parameters}) }
}

fn operation_object(operation: &Operation, schemas: &mut SchemaGenerator) -> Value {
    let mut responses = Map::new();
    for (status, body) in operation.answers {
        responses.insert(status.to_string(), answer(*status, *body, operation.path != "/v1/status", schemas));
    }
    for status in operation.refusals.iter().chain(&[401, 503, 504]) {
        responses.insert(status.to_string(), json!({"$ref": "#/components/responses/Refusal"}));
    }
    let mut object =
        json!({"operationId": id(operation), "summary": operation.words, "responses": responses});
    let parameters = parameters(operation);
    if !parameters.is_empty() {
        object["parameters"] = Value::Array(parameters);
    }
    if let Some(body) = operation.body {
        object["requestBody"] = json!({"required": true, "content": content(body, schemas)});
    }
    object
}

/// `put` of `/v1/vips/{vip}/backends/{backend}` is `putVipBackend`.
fn id(operation: &Operation) -> String {
    let parts: Vec<&str> = operation.path.trim_start_matches("/v1/").split('/').collect();
    let mut id = operation.method.to_owned();
    for (at, part) in parts.iter().enumerate().filter(|(_, part)| !part.starts_with('{')) {
        let one_of_many = parts.get(at + 1).is_some() || (operation.method == "post" && part.ends_with('s'));
        let word = if one_of_many { part.trim_end_matches('s') } else { part };
        id.extend(word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)));
    }
    id
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let text = |name: &str, required: bool, words: &str| {
        let schema = json!({"type": if name == "first" { "boolean" } else { "string" }});
        json!({"name": name, "in": "query", "required": required, "schema": schema, "description": words})
    };
    let mut parameters: Vec<Value> =
        operation.query.iter().map(|(name, required, words)| text(name, *required, words)).collect();
    if operation.change {
        parameters.push(json!({
            "name": "dry_run", "in": "query", "schema": {"type": "boolean", "default": false},
            "description": "Answer as if, and change nothing.",
        }));
        parameters.push(json!({
            "name": "If-Match", "in": "header", "schema": {"type": "string"}, "example": "\"7\"",
            "description": "The ETag of what the change was made for; 409 if it has changed since.",
        }));
    }
    parameters
}

fn answer(status: u16, body: Option<Type>, tagged: bool, schemas: &mut SchemaGenerator) -> Value {
    let description = match status {
        201 => "It is there now.",
        204 => "It is gone.",
        _ => "As it is.",
    };
    let mut answer = json!({"description": description});
    let Some(body) = body else { return answer };
    answer["content"] = content(body, schemas);
    if tagged && !matches!(body, Type::Explanation) {
        answer["headers"] = json!({"ETag": {"schema": {"type": "string"}, "description": "Its generation."}});
    }
    answer
}

fn content(body: Type, schemas: &mut SchemaGenerator) -> Value {
    let schema = match body {
        Type::Services => of::<Services>(schemas),
        Type::Vip => of::<Vip>(schemas),
        Type::Backend => of::<Backend>(schemas),
        Type::Backends => json!({"type": "array", "items": of::<Backend>(schemas)}),
        Type::Status => of::<BalancerStatus>(schemas),
        Type::Explanation => of::<FlowExplanation>(schemas),
    };
    json!({"application/json": {"schema": schema}})
}

fn of<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
    schemas.subschema_for::<T>().to_value()
}

fn refusal() -> Value {
    json!({
        "description": "Refused, and nothing is changed.",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
    })
}

/// Keys may be left out where they have a default, and the default of some is that they are missed: their descriptions
/// say so.
fn require_what_is_required(schemas: &mut Value) {
    for schema in schemas.as_object_mut().into_iter().flat_map(Map::values_mut) {
        let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
        let Some(properties) = properties else { continue };
        let mut required = Vec::new();
        for (name, property) in properties {
            let words = property["description"].as_str().unwrap_or_default();
            let Some(rest) = words.strip_prefix("Required. ").map(str::to_owned) else { continue };
            property["description"] = Value::String(rest);
            property.as_object_mut().map(|property| property.remove("default"));
            // A path names it too.
            if name != "name" {
                required.push(Value::String(name.clone()));
            }
        }
        if !required.is_empty() {
            schema["required"] = Value::Array(required);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_holds_together() {
        let document = document();
        let mut references = Vec::new();
        let mut ids = std::collections::BTreeSet::new();
        visit(&document, &mut references);
        for reference in &references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        assert!(references.iter().any(|reference| reference == "#/components/schemas/Backend"));
        for (method, path) in operations() {
            let operation = &document["paths"][path][method];
            assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{method} {path}");
        }
        for id in ["getVips", "postVip", "putVip", "deleteVipBackend", "postVipBackend", "getExplain"] {
            assert!(ids.contains(id), "{id} is missing in {ids:?}");
        }
    }

    fn visit(value: &Value, references: &mut Vec<String>) {
        match value {
            Value::Object(object) => {
                references.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| visit(value, references));
            }
            Value::Array(items) => items.iter().for_each(|value| visit(value, references)),
            _ => {}
        }
    }

    #[test]
    fn what_is_required_is_said() {
        let document = document();
        let vip = &document["components"]["schemas"]["Vip"];
        assert_eq!(vip["required"], json!(["address", "port"]));
        assert_eq!(vip["properties"]["drain"]["default"], "60s");
        assert_eq!(vip["additionalProperties"], false);
        let words = vip["properties"]["port"]["description"].as_str().unwrap();
        assert_eq!(words, "Port that clients send to.");
        // What has no keys gets none.
        assert_eq!(document["components"]["schemas"]["Protocol"].get("properties"), None);
    }
}
